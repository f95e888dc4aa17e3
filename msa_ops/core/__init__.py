"""What every operator uses: backends, argument checks, layouts, registration with torch, and the compiled libraries."""
