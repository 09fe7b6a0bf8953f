"""What people look at: pages without anything to fetch, charts, film strips."""
