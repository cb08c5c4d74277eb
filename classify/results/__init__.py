"""What a run leaves behind: its folder, its figures in words and pictures, its logs."""
