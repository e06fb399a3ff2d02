"""What runs inside Triton's Python steps, and the rules that client and export share with them."""
