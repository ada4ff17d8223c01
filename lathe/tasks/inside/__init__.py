"""Programs that judge inside a sandbox. They come by standard input, and need nothing but Python there."""
