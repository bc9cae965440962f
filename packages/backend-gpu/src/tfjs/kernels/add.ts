import * as tf from '@tensorflow/tfjs-core';
import type { Bodies } from './body';

export const addBodies: Bodies<'add'> = {
  add: ({ a, b }) => ({ y: tf.add(a, b) }),
};
