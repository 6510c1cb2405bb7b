"""RAFT on KITTI-2015 with residual sparse training (App. M, Table X)."""
