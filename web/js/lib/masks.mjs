// Mask viewer of BYA Embedding Router and BYA Mask Refine, and painter of BYA Mask Refine.
