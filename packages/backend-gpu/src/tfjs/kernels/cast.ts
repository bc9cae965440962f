import * as tf from '@tensorflow/tfjs-core';
import type { Bodies } from './body';

/** f32 alone: `supports` refuses every other type. */
export const castBodies: Bodies<'cast'> = {
  cast: ({ x }) => ({ y: tf.clone(x) }),
};
