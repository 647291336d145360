"""Model folders in the published format: conversion, export and merging."""
