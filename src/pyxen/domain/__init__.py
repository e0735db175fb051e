"""The domain process: one OS process that holds one DomU."""
