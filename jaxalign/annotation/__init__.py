"""What puts a number on a response: judges, reward models, stored scores and advantages."""
