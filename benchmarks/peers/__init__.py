"""What a user would pick instead: the same split training over other transports, each as small as it gets."""
