export { ShapeError } from '@asa/core';
