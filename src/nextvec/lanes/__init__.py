"""Lanes: the topic of each chunk, by its vector, for reports and experts. They are stored beside the bank."""

from nextvec.lanes.assign import by_chance, by_clusters, by_descriptions, by_labels, cluster_anchors, description_anchors
from nextvec.lanes.census import Agreement, LaneCensus, agreement, lane_census
from nextvec.lanes.labels import Labels, read_labels
from nextvec.lanes.store import Anchors, Lanes
from nextvec.lanes.table import DEFAULT, Table, read_table
from nextvec.lanes.taxonomy import DOMAINS, MODIFIERS, TASKS, Code, Term

__all__ = [
    "DEFAULT",
    "DOMAINS",
    "MODIFIERS",
    "TASKS",
    "Agreement",
    "Anchors",
    "Code",
    "Labels",
    "LaneCensus",
    "Lanes",
    "Table",
    "Term",
    "agreement",
    "by_chance",
    "by_clusters",
    "by_descriptions",
    "by_labels",
    "cluster_anchors",
    "description_anchors",
    "lane_census",
    "read_labels",
    "read_table",
]
