"""What model families share: each foreign class and each file format is known to one module here."""
