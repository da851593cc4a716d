"""Everything that can judge a frame, behind two calls (`base.Detector`)."""
