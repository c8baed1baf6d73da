"""HTTP without Ray: requests to images, predictions to responses, the routes between them, and a client."""
