"""What people do with a finished run: a model card, a report, the Hub. All of it reads records; nothing here trains."""
