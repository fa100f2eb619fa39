"""The console: clients, people, organisations, keys, what people let apps do, and how partners are doing, for administrators. It shows no record of a patient."""
