"""The console: clients, people, organisations, keys and what people let apps do, for administrators. It shows no record of a patient."""
