"""The compute thread: heads that schedule, stages that run steps, and the loop that serves both."""
