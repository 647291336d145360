"""Pictures: conversion to tensors and back, batches, sizes, connected components."""
