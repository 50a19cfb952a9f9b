"""Detection by pseudo labels: claims, arms, and composites of real digits and photographs."""
