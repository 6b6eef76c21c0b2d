"""Readings, and how they get from those who measure to those who listen."""

from trio_daq.data.distributor import DataDistributor, DistributorStatistics, Policy, Subscription
from trio_daq.data.publisher import DataPublisher
from trio_daq.data.reading import Reading, Value

__all__ = [
    "DataDistributor",
    "DataPublisher",
    "DistributorStatistics",
    "Policy",
    "Reading",
    "Subscription",
    "Value",
]
