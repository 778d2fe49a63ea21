"""From k-space to samples: transforms, coils, masks, augmentation."""
