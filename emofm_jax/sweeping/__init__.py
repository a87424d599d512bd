"""Many runs, in one process or several, and what they leave."""
