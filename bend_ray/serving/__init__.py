"""What is said over HTTP, without Ray: bodies to images, answers to bodies, the routes between them."""
