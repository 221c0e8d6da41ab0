"""The tests. This file makes the folder win over packages of the same name that other projects install."""
