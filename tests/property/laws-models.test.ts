import { checkLaws } from './check-laws';

checkLaws('models');
