"""Pages and pictures: the templates and what fills them in, drawing in SVG, thumbnails of images."""
