"""Reading and writing media, images and files."""
