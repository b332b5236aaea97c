"""What any long job needs: its folder and lock, what is kept to resume from, and the meter of time and memory."""
