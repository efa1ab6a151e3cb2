"""The Hub: who may write what, which files are published, and the one commit that publishes them."""
