"""How several processes train one model; the loop does not know which of these it uses."""
