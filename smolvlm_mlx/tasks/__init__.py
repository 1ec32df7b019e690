"""What a loaded model is used for: to chat, caption, read documents, watch a camera, be
evaluated."""
