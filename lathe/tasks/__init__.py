"""Problems whose solutions can be checked: how they are kept, attempted and judged."""
