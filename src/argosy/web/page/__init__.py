"""The live page, made with NiceGUI: everything in here imports it, nothing outside does."""
