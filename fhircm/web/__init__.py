"""Pages for people: signing in, letting apps in, the account; each works by keyboard, on a phone and without a script."""
