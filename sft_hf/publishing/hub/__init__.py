"""The Hub: access checks, the files to publish, and the commit that publishes them."""
