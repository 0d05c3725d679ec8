"""What happens to a frame: values in, values out."""
