"""What a training leaves to be looked at: curves as SVG, and one page that needs nothing beside itself."""
