"""Where do things lie? A project's folder, names of published files, safe writing."""
