-- Run once, when the volume is empty; `warehouse` is made by the image itself.
create database dagster;
