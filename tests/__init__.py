"""Tests mirror the tree; factories make the tiny worlds they run on."""
