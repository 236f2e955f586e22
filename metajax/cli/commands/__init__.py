"""What each word after `metajax` does."""
