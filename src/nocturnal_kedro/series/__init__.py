"""From irregular readings to leak-free windows: schema, grid, physiology, splits, origins."""
