"""A panorama cut into views: which, where each of their pixels looks, and what it sees."""
