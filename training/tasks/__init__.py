"""What an adapter can learn: one file for each task, behind one face."""
