"""Genotypes: what the cells of a network compute, as data, with the published ones by name."""

from .genotype import OPERATIONS as OPERATIONS
from .genotype import CellEdge as CellEdge
from .genotype import CellGenotype as CellGenotype
from .genotype import Genotype as Genotype
from .genotype import concat_nodes as concat_nodes
from .genotype import is_alive as is_alive
from .genotype import pruned as pruned
from .genotype import transformed as transformed
from .published import GENOTYPES as GENOTYPES
from .published import published as published
from .published import read_genotype as read_genotype
