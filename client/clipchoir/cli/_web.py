"""clipchoir web"""
