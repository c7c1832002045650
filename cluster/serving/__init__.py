"""Requests: how they are routed, admitted, answered and counted."""
