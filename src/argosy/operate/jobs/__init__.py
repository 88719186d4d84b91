"""Jobs: runs, trainings and compressions that wait for room on this machine, and the updates made of them."""
