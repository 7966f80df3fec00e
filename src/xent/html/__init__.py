"""HTML pages and pictures: `render` fills templates, `svg` draws, `thumbnails` makes PNG pictures of rows."""
