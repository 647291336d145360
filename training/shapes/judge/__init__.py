"""The judge of painted pictures: object detection, and a verdict for each kind of task."""
