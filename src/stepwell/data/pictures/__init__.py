"""Pictures of complex networks: files of networks as one more image format."""
